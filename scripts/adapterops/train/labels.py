"""What a training row is; it imports nothing, for who makes rows need not wait for torch."""

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out

Row = dict[str, list[int]]
"""`input_ids` and `labels` of equal length; a pack of rows has `seq_lengths` too, theirs."""
