"""Names of the tensors of a training state, in checkpoints and in memory."""

MASTER = "param"  # the first part of a state key: "param/blocks.0.attn.qkv.weight"
AVERAGE = "average"  # first part for the running average of the weights, kept beside the moments
MOMENTS = {  # torch.optim's names
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
