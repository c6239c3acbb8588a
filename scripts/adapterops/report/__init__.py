"""Renderings of the stages' documents: console, pull-request comment, HTML. None of them judges
anything.
"""
