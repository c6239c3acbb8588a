"""Renderings of the stages' documents: console, comment, HTML. None of them judges anything."""
