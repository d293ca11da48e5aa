"""What both ends of a link share: messages, frames, proofs, errors, targets, names. No I/O."""
