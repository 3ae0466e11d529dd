"""The architectures Stillhouse supports, one file each; the file's name is transformers'
`model_type`.

Adding one is adding a file that defines `FAMILY`.
"""
