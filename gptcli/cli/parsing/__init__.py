"""How options are declared, read, completed and refused, and what a configuration file says of them."""
