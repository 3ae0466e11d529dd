"""What travels for a first try: the sample teacher."""
