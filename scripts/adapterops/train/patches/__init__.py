"""What a training mends in other people's libraries, one file for each library.

Each piece says why it is needed, which versions need it, and where it stands upstream;
`tests/unit/test_train_patches.py` fails when a version no longer needs it. Kernels are apart: what
makes a network faster replaces its forward passes in `adapterops.train.kernels`.
"""
