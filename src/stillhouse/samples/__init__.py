"""What travels for a first try: the sample teacher, and the reader of the sample text."""
