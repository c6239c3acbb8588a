"""What pull-request runs computed: keys, what is kept under them, promotion."""
