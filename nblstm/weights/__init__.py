"""Weight files to named arrays and back."""
