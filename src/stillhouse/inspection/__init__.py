"""What the units of a model do, and what a student lost of its teacher."""
