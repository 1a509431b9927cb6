"""Give each step the plugins it needs: an edited plugin runs again what was made with its parts, and nothing else."""

from utils.pipeline.profile import Step
from utils.registry import load_plugins, named_parts


def assign_plugins(planned: list[Step]) -> None:
    """Leave every step the plugins whose parts it, or a step before it, names; note the content of its own.

    planned: in the order in which they run. Raises Problems for plugins that can't be imported, and UnknownPart for
    names that nobody registered.
    """
    if not any(step.parameters.get("plugins") for step in planned):
        return
    import utils.pipeline.open_run  # noqa: F401  (registers the built-in parts; not above, because it imports torch)

    used: dict[str, set[str]] = {}
    for step in planned:
        given = step.parameters.pop("plugins", [])
        load_plugins(given)
        parts = [part for part in named_parts(step.parameters) if part.plugin]
        used[step.name] = {part.plugin for part in parts}.union(*(used[name] for name in step.after))
        if used[step.name]:  # else as if there were none, so that naming a plugin changes only what uses it
            step.parameters["plugins"] = [path for path in given if path in used[step.name]]
        step.plugins = {part.plugin: part.sha256 for part in parts}
