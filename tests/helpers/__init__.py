"""What several tests share: models, checkpoints, hostile inputs, a loopback Hub."""
