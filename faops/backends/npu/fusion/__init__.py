"""Forward and backward on the family of npu_fusion_attention, for training and prefill."""
