"""What ``kubectl apply -k`` would apply, for the part of kustomize that the manifests use.

Anything else in a kustomization.yaml is an error here.
"""

import copy

import yaml

_FIELDS = {"apiVersion", "kind", "namespace", "resources", "patches", "configMapGenerator"}


def build(folder):
    """Return the objects of a folder with a kustomization.yaml."""
    plan = read_one(folder / "kustomization.yaml")
    assert plan.keys() <= _FIELDS, f"{folder}: unknown {plan.keys() - _FIELDS}"
    found = []
    for name in plan["resources"]:
        path = folder / name
        found += build(path.resolve()) if path.is_dir() else read(path)
    found += [_config_map(folder, item) for item in plan.get("configMapGenerator", [])]
    for patch in plan.get("patches", []):
        found = _patched(folder, found, patch)
    for item in found:
        item["metadata"]["namespace"] = plan["namespace"]
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(set(names)) == len(names), f"{folder}: an object twice"
    return found


def read(path):
    return [item for item in yaml.safe_load_all(path.read_text()) if item]


def read_one(path):
    [found] = read(path)
    return found


def _config_map(folder, item):
    assert item.keys() == {"name", "files", "options"}
    options = item["options"]
    assert options.keys() == {"disableNameSuffixHash", "labels"}
    assert options["disableNameSuffixHash"] is True
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": item["name"], "labels": options["labels"]},
        "data": {name: (folder / name).read_text() for name in item["files"]},
    }


def _patched(folder, objects, patch):
    content = yaml.safe_load((folder / patch["path"]).read_text() if "path" in patch else
                             patch["patch"])  # fmt: skip
    target = patch.get("target") or {
        "kind": content["kind"], "name": content["metadata"]["name"],
    }  # fmt: skip
    hit = [
        item
        for item in objects
        if item["kind"] == target["kind"] and item["metadata"]["name"] == target["name"]
    ]
    assert len(hit) == 1, f"{folder}: {target} is there {len(hit)} times"
    if isinstance(content, dict):
        assert content.pop("$patch") == "delete"
        return [item for item in objects if item is not hit[0]]
    changed = copy.deepcopy(hit[0])
    for step in content:
        _step(changed, step)
    return [changed if item is hit[0] else item for item in objects]


def _step(document, step):
    """Do one operation of RFC 6902, of those that there are."""
    *way, last = step["path"].strip("/").split("/")
    place = document
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    key = last if isinstance(place, dict) or last == "-" else int(last)
    if step["op"] == "test":
        assert place[key] == step["value"], step
    elif step["op"] == "replace":
        assert place[key] is not None
        place[key] = step["value"]
    else:
        assert (step["op"], last) == ("add", "-"), f"not known here: {step}"
        place.append(step["value"])
