"""What files hold: headers, names, roles, frames."""
