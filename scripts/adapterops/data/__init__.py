"""The validate stage: rows of `data/` and what is checked of them."""
