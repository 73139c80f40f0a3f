"""Exercise 5: when, and where, does the stream leave what random weights make of it? At step 0 the
log is what the theory says. Which branch is the first to add twice as much, and which has grown
most in the end, both summed over blocks?"""

import sys
from pathlib import Path

from common import came_out, train

sys.path.insert(0, str(Path.cwd()))
from data.read import held_out_sequences
from results.runs import load_run, read_log
from theory import predict_variance


def added_by(branch, log):
    """{step: variance that a branch adds, summed over blocks, over that of step 0}"""
    added = {line["step"]: sum(line[f"{branch}_variance"]) for line in log if "variance" in line}
    return {step: of_step / added[0] for step, of_step in added.items()}


def first_step_of_twice(log, branch):
    return next(step for step, times in added_by(branch, log).items() if times > 2)


whole = train("out/whole")
start = train("out/start", "--max_iters=30", "--eval_interval=1")  # all of it warm-up
for seed, (folder,) in whole.items():
    log, first_steps = read_log(folder), read_log(start[seed][0])
    model, config = load_run(folder)
    idx, _ = held_out_sequences(config, model.config, 128)
    predicted = predict_variance(model.config, idx)[-1]
    numbers = {
        "h_12 over theory, step 0": log[0]["variance"][-1] / predicted,
        "h_12 over theory, step 300": log[-1]["variance"][-1] / predicted,
        "step at which attention adds twice as much": first_step_of_twice(first_steps, "attention"),
        "step at which the feed-forward does": first_step_of_twice(first_steps, "mlp"),
        "attention adds, step 300 over step 0": added_by("attention", log)[300],
        "the feed-forward adds, step 300 over step 0": added_by("mlp", log)[300],
    }
    came_out(seed, numbers)
