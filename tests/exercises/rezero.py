"""Exercise 6: the toggle of lesson 5, kept: a field of GPTConfig, a parameter, two factors."""

from common import came_out, edit, score, train

edit(
    "model.py",
    "    def __post_init__(self):\n        self.n_kv_head",
    "    rezero: bool = False  # times a number that begins at 0 (arXiv 2003.04887)\n\n"
    "    def __post_init__(self):\n        self.n_kv_head",
)
edit(
    "model.py",
    """        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))
""",
    """        if self.gain is None:
            x = x + self.attention(self.attention_norm(x))
            return x + self.mlp(self.mlp_norm(x))
        x = x + self.gain[0] * self.attention(self.attention_norm(x))
        return x + self.gain[1] * self.mlp(self.mlp_norm(x))
""",
)
edit(
    "model.py",
    "\n    def forward(self, x):\n        if self.gain is None:",
    "        self.gain = nn.Parameter(torch.zeros(2)) if config.rezero else None\n"
    "\n    def forward(self, x):\n        if self.gain is None:",
)
for seed, (folder,) in train("out/rezero", "--rezero=true").items():
    scores = score(folder)
    numbers = {
        "variance of h_12 over h_1": scores["variance"][-1] / scores["variance"][1],
        "loss": scores["loss"],
        "cost of a swap": scores["swap"],
        "blocks that could go": scores["could_go"],
    }
    came_out(seed, numbers)
