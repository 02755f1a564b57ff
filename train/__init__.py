"""SimCLR pre-training: config, model, loss, checkpoint, journal, loop."""
