"""How many weights change."""
