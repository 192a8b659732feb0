"""The parts of compare.py: trials, how they are run, chosen and recorded, and the page that shows them."""
