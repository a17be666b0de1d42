"""Float detectors: Mask R-CNN and Cascade Mask R-CNN with a Swin body. Not reachable from a command yet."""
