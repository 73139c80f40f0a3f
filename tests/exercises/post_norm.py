"""Exercise 3: x = norm(x + branch(x)). What becomes of the variance, and of the loss?"""

from common import came_out, edit, score, train

edit(
    "model.py",
    """        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))
""",
    """        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))
""",
)
for seed, (folder,) in train("out/post_norm").items():
    scores = score(folder)
    numbers = {
        "variance of h_1": scores["variance"][1],
        "variance of h_12": scores["variance"][-1],
        "loss": scores["loss"],
        "cost of a swap": scores["swap"],
        "blocks that could go": scores["could_go"],
    }
    came_out(seed, numbers)
