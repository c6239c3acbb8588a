"""What a training row is, for those who make rows and those who batch them; imports nothing, since
torch takes seconds.
"""

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out

Row = dict[str, list[int]]
"""`input_ids` and `labels` of equal length; a pack of rows has `seq_lengths` too, theirs."""
