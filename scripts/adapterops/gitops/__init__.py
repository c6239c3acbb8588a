"""GitHub: plan and required check of a pull request, comments, commands, identities, reverts."""
