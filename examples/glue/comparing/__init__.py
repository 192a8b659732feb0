"""What compare.py is made of: cells and how they are run, searched and kept, and the page that shows them."""
