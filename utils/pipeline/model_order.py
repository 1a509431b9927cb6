"""Which model of a profile starts from which, refines which, and votes."""

from graphlib import CycleError, TopologicalSorter
from typing import Any

from utils.files import unknown

NETWORK = ("architecture", "encoder", "model_options")
"""Parameters of 03 that make a network, which one that starts from another's weights must share."""


def find_chains(models: dict[str, dict[str, Any]], problems: list[str]) -> dict[str, list[str]]:
    """For each model, earlier ones first: the models it builds on by `after`, and itself; adds to `problems`."""
    chains = {}
    for name in models:
        chain = [name]
        while (earlier := models[chain[0]].get("after")) is not None:
            if not isinstance(earlier, str) or earlier not in models:
                problems.append(f"models.{chain[0]}: {unknown('model in after', str(earlier), models)}")
                break
            here, own = f"models.{chain[0]}", models[chain[0]]
            if changed := [k for k in NETWORK if k in own and own[k] != models[earlier].get(k)]:
                problems.append(f"{here}.{changed[0]}: leave it out; it is that of {earlier}, whose weights it takes")
            chain.insert(0, earlier)
            if earlier in chain[1:]:
                problems.append(f"models.{name}: after leads in a circle, {' ← '.join(chain)}")
                break
        chains[name] = chain
    return chains


def find_stages(
    models: dict[str, dict[str, Any]],
    shared: dict[str, dict[str, Any]],
    chains: dict[str, list[str]],
    problems: list[str],
) -> dict[str, str]:
    """For each model that is a wrist stage, the one whose carpals it refines; adds to `problems`.

    shared: the sections that all models share, by their names. `chains` is put in order: what a model needs comes
    before it.
    """
    stages = {}
    for name, chain in chains.items():
        named = [models[m]["wrist_of"] for m in chain if "wrist_of" in models[m]]
        stages |= {name: str(named[-1])} if named and named[-1] else {}
    others = [name for name in models if name not in stages]
    for name, first in stages.items():
        if first not in others:
            problems.append(f"models.{name}: {unknown('model in wrist_of', first, others)}")
    for title, values in shared.items():
        if "wrist_of" in values:
            problems.append(f"{title}.wrist_of: give it to one of the models")
    if not problems:
        try:
            needs = {name: [*chain[-2:-1], *filter(None, [stages.get(name)])] for name, chain in chains.items()}
            order = list(TopologicalSorter(needs).static_order())
            chains |= {name: chains.pop(name) for name in order}
        except CycleError as error:
            problems.append(f"models: after and wrist_of lead in a circle, {' ← '.join(error.args[1])}")
    return stages


def check_votes(
    models: dict[str, dict[str, Any]], others_vote: bool, chains: dict[str, list[str]], stages: dict[str, str]
) -> list[str]:
    """What is wrong with the key `votes` of the models; others_vote: whether there are further models that vote."""
    needed = {earlier for chain in chains.values() for earlier in chain[:-1]}
    problems, silent = [], [name for name, values in models.items() if not is_voter(values)]
    for name, values in models.items():
        if not isinstance(values.get("votes", True), bool):
            problems.append(f"models.{name}.votes: expected true or false, found {values['votes']!r}")
        elif name in silent and name in stages.values():
            problems.append(f"models.{name}.votes: false, but a wrist stage refines it, which only a vote shows")
        elif name in silent and name not in needed:
            problems.append(f"models.{name}.votes: false, but no other model starts from it")
    if silent and not others_vote and len(silent) == len(models):
        problems.append("models: none votes; leave votes: false out of one")
    return problems


def is_voter(values: dict[str, Any]) -> bool:
    """Whether a model votes, by its section of a profile."""
    return values.get("votes", True) is not False
