"""Detection of machine text: features of a text, a fitted detector, and its measured rates."""
