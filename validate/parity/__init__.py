"""Does the deployed model compute what was calibrated: from single integers to whole logits."""
