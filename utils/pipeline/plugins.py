"""Give each step only the plugins it needs, so that an edited plugin reruns only the steps that use its parts."""

from utils.pipeline.steps import Step
from utils.registry import load_plugins, named_parts


def assign_plugins(planned: list[Step]) -> None:
    """Keep for each step only the plugins whose parts it, or a step before it, names; record the SHA-256 of its own.

    planned: the steps in the order in which they run; they are changed in place. Raises Problems for plugins that can't
    be imported, and UnknownPart for names that are not registered.
    """
    if not any(step.parameters.get("plugins") for step in planned):
        return
    import utils.pipeline.run  # noqa: F401  (registers the built-in parts; not above, because it imports torch)

    used: dict[str, set[str]] = {}
    for step in planned:
        given = step.parameters.pop("plugins", [])
        load_plugins(given)
        parts = [part for part in named_parts(step.parameters) if part.plugin]
        used[step.name] = {part.plugin for part in parts}.union(*(used[name] for name in step.after))
        if used[step.name]:  # else no parameter, so that naming a plugin changes only steps that use it
            step.parameters["plugins"] = [path for path in given if path in used[step.name]]
        step.plugins = {part.plugin: part.sha256 for part in parts}
