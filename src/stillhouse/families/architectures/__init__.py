"""Architectures with a head, a token runner or students of their own, one file each.

The file's name is transformers' `model_type`, listed in `families.settings`. It defines `FAMILY`:
`Family` without the fields that `families.probe` finds.
"""
