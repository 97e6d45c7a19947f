"""Refuses YAML files in which a key occurs twice, because YAML readers silently keep only the last one."""

from pathlib import Path

import yaml

# libyaml is ten times as fast, but not everywhere
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_repeated_keys(file: Path) -> None:
    """Raise ValueError, with the key and the lines, if a mapping in a YAML or JSON file has a key twice.

    A file that is not valid YAML is accepted, because its reader says what is wrong.
    """
    try:
        root = yaml.compose(file.read_text(), _LOADER)
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    pending, seen = [("", root)], set()
    while pending:
        where, node = pending.pop()
        # an alias is the node of its anchor
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += [(where, value) for value in node.value]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                name = f"{where}.{key.value}".lstrip(".") if isinstance(key, yaml.ScalarNode) else where
                pending.append((name, value))
                # several << merge several mappings
                if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                    continue
                if (key.tag, key.value) in lines:
                    first = lines[key.tag, key.value]
                    raise ValueError(
                        f"{name}: {file} has this key twice, in lines {first} and {line}; remove or rename one"
                    )
                lines[key.tag, key.value] = line
