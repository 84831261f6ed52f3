"""What a Bicep template deploys for given parameters, found out without Azure.

The syntax tree is tree-sitter's; this module evaluates it. It knows the part of the language that
`infra/` uses and refuses everything else, so a name, a function, a parameter or an output that does
not exist is a `BicepError`, wherever it stands.

Values that Azure makes up during a deployment (a principal id, an endpoint) are `Runtime` texts. As
in Bicep itself they may stand in properties, but not in names, conditions or loops; a module that
receives one as a parameter may use it anywhere.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tree_sitter_bicep
from tree_sitter import Language, Node, Parser

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-00000000000a"
TENANT = "00000000-0000-0000-0000-00000000000b"
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "int": int,
    "bool": bool,
    "object": dict,
    "array": list,
}


class BicepError(Exception):
    """What the template says cannot be deployed."""


class Runtime(str):
    """A text that is known only once the deployment runs."""

    __slots__ = ()


@dataclass(frozen=True)
class Resource:
    """A resource as it would be sent to Azure Resource Manager."""

    symbol: str
    file: Path
    type: str
    api_version: str
    id: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        """The last part of its name."""
        return str(self.body["name"])

    @property
    def properties(self) -> dict[str, Any]:
        """Its properties."""
        return dict(self.body.get("properties", {}))


@dataclass
class Deployment:
    """All resources of a template and its modules, and the template's outputs."""

    resources: list[Resource] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    read: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)
    """Which properties of which resource type the template reads: (type@version, path)."""

    def of(self, type_: str) -> list[Resource]:
        """Return the resources of a type."""
        return [resource for resource in self.resources if resource.type == type_]

    def one(self, type_: str) -> Resource:
        """Return the only resource of a type."""
        (found,) = self.of(type_)
        return found


class Sources:
    """The template's files, some of them perhaps changed."""

    def __init__(self, changed: Mapping[Path, str] | None = None) -> None:
        self._changed = {path.resolve(): text for path, text in (changed or {}).items()}
        self._trees: dict[Path, Node] = {}

    def text(self, path: Path) -> str:
        """Return a file's text; raises `BicepError`."""
        path = path.resolve()
        if path in self._changed:
            return self._changed[path]
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise BicepError(f"{path} does not exist") from None

    def tree(self, path: Path) -> Node:
        """Return a file's syntax tree; raises `BicepError` where it has mistakes."""
        path = path.resolve()
        if path not in self._trees:
            self._trees[path] = _parsed(path.name, self.text(path))
        return self._trees[path]


@cache
def _parsed(name: str, text: str) -> Node:
    root = Parser(Language(tree_sitter_bicep.language())).parse(text.encode()).root_node
    if root.has_error:
        place = next(node for node in _walk(root) if node.is_error or node.is_missing)
        raise BicepError(f"{name}:{place.start_point.row + 1} cannot be parsed")
    return root


def deploy(
    template: Path, parameters: Mapping[str, Any], sources: Sources | None = None
) -> Deployment:
    """Evaluate a template with parameters; raises `BicepError`."""
    deployment = Deployment()
    sources = sources or Sources()
    module = _Module(template, dict(parameters), SUBSCRIPTION, deployment, sources)
    deployment.outputs = module.run()
    return deployment


def declared(template: Path, sources: Sources | None = None) -> dict[str, set[str]]:
    """Return the names a template declares, by kind: parameter, variable, resource, output."""
    found: dict[str, set[str]] = {}
    for node in (sources or Sources()).tree(template).named_children:
        kind = node.type.removesuffix("_declaration")
        if kind != node.type:
            found.setdefault(kind, set()).add(_text(node.named_children[0]))
    return found


def parameter_defaults(template: Path, sources: Sources | None = None) -> dict[str, Any]:
    """Return the defaults of the template's parameters, of those that have one."""
    module = _Module(template, {}, SUBSCRIPTION, Deployment(), sources or Sources())
    return module.defaults()


def unused(template: Path, sources: Sources | None = None) -> set[str]:
    """Return parameters and variables that nothing in the template reads."""
    root = (sources or Sources()).tree(template)
    names = declared(template, sources)
    read = {_text(node) for node in _walk(root) if node.type == "identifier" and _is_read(node)}
    return (names.get("parameter", set()) | names.get("variable", set())) - read


def _is_read(node: Node) -> bool:
    parent = node.parent
    if parent is None:
        return False
    first = parent.named_children[0] == node
    return not (
        first and (parent.type.endswith("_declaration") or parent.type == "object_property")
    )


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _text(node: Node) -> str:
    return (node.text or b"").decode()


# ---------------------------------------------------------------- things that have properties


class _ResourceReference:
    """A resource, as expressions see it."""

    def __init__(
        self, module: "_Module", kind: str, resource_id: str, body: dict[str, Any]
    ) -> None:
        self.module = module
        self.kind = kind
        self.id = resource_id
        self.name = body["name"]

    def get(self, name: str) -> Any:
        if name == "id":
            return self.id
        if name == "name":
            return self.name
        return _Unknown(self, (name,)).settle()


class _Unknown:
    """A property of a resource that only the deployment knows."""

    def __init__(self, resource: _ResourceReference, path: tuple[str, ...]) -> None:
        self.resource = resource
        self.path = path

    def settle(self) -> "_Unknown | Runtime":
        return self

    def get(self, name: str) -> "_Unknown":
        return _Unknown(self.resource, (*self.path, name))

    def runtime(self) -> Runtime:
        self.resource.module.deployment.read.add((self.resource.kind, self.path))
        return Runtime(f"<{self.resource.id}#{'.'.join(self.path)}>")


class _ModuleReference:
    def __init__(self, name: str, outputs: dict[str, Any] | None) -> None:
        self.name = name
        self.outputs = outputs

    def get(self, name: str) -> Any:
        if name != "outputs":
            raise BicepError(f"module {self.name} has no {name}")
        if self.outputs is None:
            raise BicepError(f"module {self.name} is not deployed, but its outputs are read")
        return self.outputs


class _Absent:
    """A resource whose condition is false."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get(self, name: str) -> Any:
        raise BicepError(f"resource {self.name} is not deployed, but its {name} is read")


def _plain(value: Any) -> Any:
    """Turn references into what they stand for in a resource's body."""
    if isinstance(value, _Unknown):
        return value.runtime()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _known(value: Any) -> Any:
    """What a module receives is known when the module starts."""
    if isinstance(value, Runtime):
        return str(value)
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return value


def _settled(value: Any, what: str) -> Any:
    value = _plain(value)
    if isinstance(value, Runtime):
        raise BicepError(f"{what} must be known before the deployment runs: {value}")
    return value


# ---------------------------------------------------------------- evaluation


class _Module:
    """One file, evaluated with its parameters at one scope."""

    def __init__(
        self,
        path: Path,
        parameters: dict[str, Any],
        scope: str,
        deployment: Deployment,
        sources: Sources,
    ) -> None:
        self.path = path
        self.scope = scope
        self.deployment = deployment
        self.sources = sources
        self._parameters = parameters
        self._values: dict[str, Any] = {}
        self._declared: dict[str, Node] = {}
        self._decorators: dict[str, dict[str, list[Any]]] = {}
        self._read_declarations()

    def run(self) -> dict[str, Any]:
        """Evaluate everything; return the outputs."""
        unknown = set(self._parameters) - {
            name for name, node in self._declared.items() if node.type == "parameter_declaration"
        }
        if unknown:
            raise BicepError(f"{self.path.name} has no parameter {', '.join(sorted(unknown))}")
        outputs = {}
        for name, node in self._declared.items():
            if node.type == "output_declaration":
                outputs[name.removeprefix("output ")] = _plain(
                    self._evaluate(node.named_children[-1], {})
                )
            else:
                self._lookup(name)
        return outputs

    def defaults(self) -> dict[str, Any]:
        """Return the parameters' defaults."""
        return {
            name: self._evaluate(node.named_children[2], {})
            for name, node in self._declared.items()
            if node.type == "parameter_declaration" and len(node.named_children) > 2
        }

    def _read_declarations(self) -> None:
        pending: dict[str, list[Any]] = {}
        for node in self.sources.tree(self.path).named_children:
            if node.type == "decorators":
                for decorator in node.named_children:
                    call = decorator.named_children[0]
                    arguments = call.named_children[1].named_children
                    pending[_text(call.named_children[0])] = [
                        self._evaluate(argument, {}) for argument in arguments
                    ]
            elif node.type.endswith("_declaration"):
                name = _text(node.named_children[0])
                if node.type == "output_declaration":
                    name = f"output {name}"
                if name in self._declared:
                    raise self._error(node, f"{name} is declared twice")
                self._declared[name] = node
                self._decorators[name] = pending
                pending = {}

    def _error(self, node: Node, message: str) -> BicepError:
        return BicepError(f"{self.path.name}:{node.start_point.row + 1}: {message}")

    def _lookup(self, name: str) -> Any:
        if name not in self._declared:
            raise BicepError(f"{self.path.name}: {name} does not exist")
        if name not in self._values:
            node = self._declared[name]
            self._values[name] = getattr(self, f"_{node.type}")(name, node)
        return self._values[name]

    # ------------------------------------------------------------ declarations

    def _parameter_declaration(self, name: str, node: Node) -> Any:
        _, kind, *default = node.named_children
        if name in self._parameters:
            value = self._parameters[name]
        elif default:
            value = self._evaluate(default[0], {})
        else:
            raise BicepError(f"{self.path.name} needs the parameter {name}")
        expected = _TYPES[_text(kind)]
        if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
            raise BicepError(f"{self.path.name}: parameter {name} is no {_text(kind)}: {value!r}")
        self._check_bounds(name, value)
        return value

    def _check_bounds(self, name: str, value: Any) -> None:
        checks: dict[str, Callable[[Any], bool]] = {
            "allowed": lambda allowed: value in allowed,
            "minLength": lambda least: len(value) >= least,
            "maxLength": lambda most: len(value) <= most,
            "minValue": lambda least: value >= least,
            "maxValue": lambda most: value <= most,
        }
        for decorator, arguments in self._decorators[name].items():
            try:
                keeps = decorator not in checks or checks[decorator](*arguments)
            except TypeError:
                keeps = False
            if not keeps:
                raise BicepError(f"{self.path.name}: {name} breaks @{decorator}: {value!r}")

    def _variable_declaration(self, name: str, node: Node) -> Any:
        return self._evaluate(node.named_children[1], {})

    def _resource_declaration(self, name: str, node: Node) -> Any:
        kind = self._evaluate(node.named_children[1], {})
        type_, _, version = kind.partition("@")
        existing = any(child.type == "existing" for child in node.children)

        def one(body: Node, names: dict[str, Any]) -> _ResourceReference:
            content = self._evaluate(body, names)
            own = {key: value for key, value in content.items() if key not in _PLACING}
            own["name"] = _settled(own.get("name"), f"the name of {name}")
            resource_id = self._id(type_, own["name"], content)
            if not existing:
                self.deployment.resources.append(
                    Resource(name, self.path, type_, version, resource_id, _plain(own))
                )
            return _ResourceReference(self, kind, resource_id, own)

        return self._each(name, node.named_children[2], one)

    def _id(self, type_: str, name: str, content: dict[str, Any]) -> str:
        if "parent" in content:
            return f"{content['parent'].id}/{type_.rpartition('/')[2]}/{name}"
        scope = content.get("scope")
        at = scope.id if isinstance(scope, _ResourceReference) else self.scope
        if type_ == "Microsoft.Resources/resourceGroups":
            return f"{at}/resourceGroups/{name}"
        return f"{at}/providers/{type_}/{name}"

    def _module_declaration(self, name: str, node: Node) -> Any:
        path = self.path.parent / self._evaluate(node.named_children[1], {})

        def one(body: Node, names: dict[str, Any]) -> _ModuleReference:
            content = self._evaluate(body, names)
            scope = content["scope"].id if "scope" in content else self.scope
            parameters = _known(_plain(content.get("params", {})))
            module = _Module(path, parameters, scope, self.deployment, self.sources)
            outputs = {key: _runtime_text(value) for key, value in module.run().items()}
            return _ModuleReference(name, outputs)

        return self._each(name, node.named_children[2], one)

    def _each(self, name: str, node: Node, make: Callable[[Node, dict[str, Any]], Any]) -> Any:
        """Make one, several or none, as a loop or a condition says."""
        if node.type == "for_statement":
            return [make(node.named_children[-1], names) for names in self._loop(node, {})]
        if node.type == "if_statement":
            condition, body = node.named_children
            wanted = _settled(self._evaluate(condition, {}), f"the condition of {name}")
            if not isinstance(wanted, bool):
                raise self._error(node, f"the condition of {name} is no bool")
            return make(body, {}) if wanted else _Absent(name)
        return make(node, {})

    def _loop(self, node: Node, names: dict[str, Any]) -> Iterator[dict[str, Any]]:
        variable, items, _ = node.named_children
        listed = _settled(self._evaluate(items, names), "what a loop goes over")
        if not isinstance(listed, list):
            raise self._error(node, "a loop goes over an array")
        for index, item in enumerate(listed):
            if variable.type == "for_loop_parameters":
                one, other = (_text(child) for child in variable.named_children)
                yield names | {one: item, other: index}
            else:
                yield names | {_text(variable): item}

    # ------------------------------------------------------------ expressions

    def _evaluate(self, node: Node, names: dict[str, Any]) -> Any:
        handler = getattr(self, f"_eval_{node.type}", None)
        if handler is None:
            raise self._error(node, f"{node.type} is not understood")
        return handler(node, names)

    def _eval_identifier(self, node: Node, names: dict[str, Any]) -> Any:
        name = _text(node)
        return names[name] if name in names else self._lookup(name)

    def _eval_string(self, node: Node, names: dict[str, Any]) -> str:
        parts: list[Any] = []
        for child in node.named_children:
            if child.type == "interpolation":
                parts.append(_plain(self._evaluate(child.named_children[0], names)))
            elif child.type == "escape_sequence":
                parts.append(_ESCAPES[_text(child)])
            else:
                parts.append(_text(child))
        if any(isinstance(part, (dict, list)) or part is None for part in parts):
            raise self._error(node, "a text may hold texts and numbers only")
        text = "".join(str(part).lower() if isinstance(part, bool) else str(part) for part in parts)
        return Runtime(text) if any(isinstance(part, Runtime) for part in parts) else text

    def _eval_number(self, node: Node, names: dict[str, Any]) -> int:
        return int(_text(node))

    def _eval_boolean(self, node: Node, names: dict[str, Any]) -> bool:
        return _text(node) == "true"

    def _eval_null(self, node: Node, names: dict[str, Any]) -> None:
        return None

    def _eval_object(self, node: Node, names: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in node.named_children:
            if item.type == "comment":
                continue
            key, value = (child for child in item.named_children if child.type != "comment")
            name = _text(key) if key.type == "identifier" else str(self._evaluate(key, names))
            if name in found:
                raise self._error(item, f"{name} stands there twice")
            found[name] = self._evaluate(value, names)
        return found

    def _eval_array(self, node: Node, names: dict[str, Any]) -> list[Any]:
        return [
            self._evaluate(child, names) for child in node.named_children if child.type != "comment"
        ]

    def _eval_for_statement(self, node: Node, names: dict[str, Any]) -> list[Any]:
        return [self._evaluate(node.named_children[-1], inner) for inner in self._loop(node, names)]

    def _eval_parenthesized_expression(self, node: Node, names: dict[str, Any]) -> Any:
        return self._evaluate(node.named_children[0], names)

    def _eval_ternary_expression(self, node: Node, names: dict[str, Any]) -> Any:
        condition, yes, no = node.named_children
        chosen = _settled(self._evaluate(condition, names), "a condition")
        if not isinstance(chosen, bool):
            raise self._error(node, "a condition is no bool")
        return self._evaluate(yes if chosen else no, names)

    def _eval_unary_expression(self, node: Node, names: dict[str, Any]) -> Any:
        value = _settled(self._evaluate(node.named_children[0], names), "an operand")
        if _text(node.children[0]) == "!" and isinstance(value, bool):
            return not value
        raise self._error(node, "this operator is not understood")

    def _eval_binary_expression(self, node: Node, names: dict[str, Any]) -> Any:
        operator = _text(node.children[1])
        left = _settled(self._evaluate(node.named_children[0], names), "an operand")
        if operator == "&&" and left is False:
            return False
        if operator == "||" and left is True:
            return True
        right = _settled(self._evaluate(node.named_children[1], names), "an operand")
        if operator not in _OPERATORS:
            raise self._error(node, f"{operator} is not understood")
        return _OPERATORS[operator](left, right)

    def _eval_member_expression(self, node: Node, names: dict[str, Any]) -> Any:
        owner = self._evaluate(node.named_children[0], names)
        name = _text(node.named_children[1])
        if isinstance(owner, dict):
            if name not in owner:
                raise self._error(node, f"there is no {name}")
            return owner[name]
        if not hasattr(owner, "get"):
            raise self._error(node, f"{_text(node.named_children[0])} has no properties")
        return owner.get(name)

    def _eval_subscript_expression(self, node: Node, names: dict[str, Any]) -> Any:
        owner, index = (self._evaluate(child, names) for child in node.named_children)
        try:
            return owner[index]
        except (IndexError, KeyError, TypeError):
            raise self._error(node, f"there is no {index!r}") from None

    def _eval_call_expression(self, node: Node, names: dict[str, Any]) -> Any:
        function = _text(node.named_children[0])
        arguments = [
            self._evaluate(child, names) for child in node.named_children[1].named_children
        ]
        if function == "loadJsonContent":
            return json.loads(self.sources.text(self.path.parent / arguments[0]))
        if function == "loadTextContent":
            return self.sources.text(self.path.parent / arguments[0])
        if function == "resourceGroup":
            name = self.scope.rpartition("/")[2]
            return {"id": self.scope, "name": name, "location": "<location>"}
        if function not in _FUNCTIONS:
            raise self._error(node, f"the function {function} is not understood")
        arguments = [_plain(argument) for argument in arguments]
        value = _FUNCTIONS[function](*arguments)
        is_runtime = any(isinstance(argument, Runtime) for argument in arguments)
        return Runtime(value) if is_runtime and isinstance(value, str) else value


_PLACING = frozenset({"parent", "scope", "dependsOn"})
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\'": "'", r"\\": "\\", r"\$": "$"}
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    "&&": lambda left, right: left and right,
    "||": lambda left, right: left or right,
    ">": lambda left, right: left > right,
    "<": lambda left, right: left < right,
    ">=": lambda left, right: left >= right,
    "<=": lambda left, right: left <= right,
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left // right,
}


def _runtime_text(value: Any) -> Any:
    return Runtime(value) if isinstance(value, str) else value


def _hash(*parts: str, length: int = 13) -> str:
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return "".join(chr(ord("a") + int(character, 16)) for character in digest)[:length]


def _guid(*parts: str) -> str:
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _union(*parts: Any) -> Any:
    if all(isinstance(part, list) for part in parts):
        return [item for part in parts for item in part]
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return merged


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "concat": lambda *parts: _union(*parts) if isinstance(parts[0], list) else "".join(parts),
    "contains": lambda holder, item: item in holder,
    "empty": lambda value: not value,
    "environment": lambda: {
        "suffixes": {"storage": "core.windows.net"},
        "authentication": {"loginEndpoint": "https://login.microsoftonline.com/"},
    },
    "guid": _guid,
    "length": len,
    "max": max,
    "min": min,
    "range": lambda start, count: list(range(start, start + count)),
    "replace": lambda text, old, new: text.replace(old, new),
    "string": lambda value: value if isinstance(value, str) else json.dumps(value),
    "subscription": lambda: {
        "id": SUBSCRIPTION,
        "subscriptionId": SUBSCRIPTION.rpartition("/")[2],
        "tenantId": TENANT,
    },
    "subscriptionResourceId": lambda type_, name: f"{SUBSCRIPTION}/providers/{type_}/{name}",
    "substring": lambda text, start, count: text[start : start + count],
    "take": lambda value, count: value[:count],
    "tenant": lambda: {"tenantId": TENANT},
    "toLower": lambda text: text.lower(),
    "union": _union,
    "uniqueString": _hash,
}
