"""What Stillhouse costs, measured: its training step beside a plain statement of 2019's."""
