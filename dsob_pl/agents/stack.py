"""The networks of many agents of one shape in stacked tensors, and pure functions evaluated on all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsob_pl.agents.objectives import PARTS
from dsob_pl.agents.sobolev_actor_critic import SobolevActorCritic

_NETWORKS = (*PARTS, "target_critic", "target_policy")


class AgentStack(nn.Module):
    """S agents that differ in their numbers only.

    The parameters of each network are one matrix ``[S, P]``, a flattened agent in each row: optimizer, gradient
    clipping and Polyak step are then a few operations, whatever the number of agents and layers. Buffers are stacked
    likewise. The agents' own parameters and buffers are views of these tensors, so that every agent is at all times a
    complete one that can act, be evaluated and be saved by itself.

    Args:
        agents: S agents built from one config; taken over.

    Attributes:
        agents: the same.
    """

    def __init__(self, agents: Sequence[SobolevActorCritic]) -> None:
        super().__init__()
        self.agents = list(agents)
        self._lenders = [_Call(self.agents[0])]  # in a list, or its tensors would count as the stack's own
        for network in _NETWORKS:
            rows = [self._flattened(agent, network) for agent in self.agents]
            if rows[0].numel():
                self.register_parameter(network, nn.Parameter(torch.stack(rows), network in PARTS))
        self.stack_buffers()

    def __len__(self) -> int:
        return len(self.agents)

    def stack_buffers(self) -> None:
        """Stacks the agents' buffers anew, for where an agent has got further ones since."""
        saved = self.agents[0].state_dict().keys()
        own = [dict(agent.named_buffers()) for agent in self.agents]
        for name in own[0]:
            stacked = torch.stack([buffers[name].detach().to(self.device) for buffers in own])
            self.register_buffer(_key(name), stacked, persistent=name in saved)
        self.bind()

    def bind(self) -> None:
        """Makes the agents' parameters and buffers views of the stacked ones, which may have moved to a device."""
        for i, agent in enumerate(self.agents):
            agent.to(self.device)
            for network in self.networks:
                parameters = list(getattr(agent, network).parameters())
                row = self.get_parameter(network).data[i]
                for parameter, piece in zip(parameters, row.split([p.numel() for p in parameters])):
                    parameter.data = piece.view(parameter.shape)
            for name, _ in list(agent.named_buffers()):
                owner, _, local = name.rpartition(".")
                setattr(agent.get_submodule(owner), local, self.get_buffer(_key(name))[i])

    @property
    def networks(self) -> list[str]:
        """Names of the networks that have parameters."""
        return [name for name, _ in self.named_parameters()]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.get_parameter("critic").device

    def evaluate(self, function: Callable[..., Any], *arguments: Any, trained: str = "") -> Any:
        """``function(agent, *arguments)`` for all agents at once, by ``torch.func.vmap``.

        Args:
            function: of an agent and tensors, pure: it reads the agent's tensors and changes nothing.
            arguments: tensors ``[S, ...]``, or tuples and dictionaries of such.
            trained: the network in whose stacked parameters the result is differentiable; all others are constants.

        Returns:
            what ``function`` returns, its tensors with a leading dimension S.
        """

        def one(tensors: dict[str, Tensor], *arguments: Any) -> Any:
            # A part that two modules share (the normaliser) has one name here, and is replaced once.
            return torch.func.functional_call(self._lenders[0], tensors, (function, *arguments), tie_weights=False)

        return torch.func.vmap(one)(self._tensors(trained), *arguments)

    @torch.no_grad()
    def copy_buffers(self, source: str, target: str) -> None:
        """Copies the buffers of one network to another of the same structure."""
        for name, _ in getattr(self.agents[0], source).named_buffers():
            self.get_buffer(_key(f"{target}.{name}")).copy_(self.get_buffer(_key(f"{source}.{name}")))

    def select(self, keep: Sequence[int], optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        """Keeps the agents at these positions, with their rows of the optimizers' states; the others go as they are."""
        rows = torch.tensor(keep, device=self.device)
        for name in self.networks:
            matrix = self.get_parameter(name)
            for optimizer in optimizers:
                state = optimizer.state.get(matrix, {})
                state.update(
                    {key: x[rows] for key, x in state.items() if isinstance(x, Tensor) and x.shape == matrix.shape}
                )
            matrix.grad = None
            matrix.data = matrix.data[rows]
        for name, buffer in list(self.named_buffers()):
            setattr(self, name, buffer[rows])
        self.agents = [self.agents[i] for i in keep]
        self._lenders = [_Call(self.agents[0])]
        self.bind()

    def unstacked_optimizer_state(self, state: dict[str, Any], network: str, index: int) -> dict[str, Any]:
        """The state dict of the optimizer of one agent's ``network`` alone, from that of the optimizer of the stack."""
        parameters = list(getattr(self.agents[index], network).parameters())
        entries = state["state"].get(0, {})
        pieces: list[dict[str, Any]] = [{} for _ in parameters]
        for key, value in entries.items():
            per_agent = isinstance(value, Tensor) and value.shape == self.get_parameter(network).shape
            rows = value[index].split([p.numel() for p in parameters]) if per_agent else [value] * len(parameters)
            for piece, row, parameter in zip(pieces, rows, parameters):
                piece[key] = row.view(parameter.shape).clone() if per_agent else row
        groups = [{**group, "params": list(range(len(parameters)))} for group in state["param_groups"]]
        return {"state": dict(enumerate(pieces)) if entries else {}, "param_groups": groups}

    def _tensors(self, trained: str) -> dict[str, Tensor]:
        """Parameters and buffers ``[S, ...]`` by their names in the first agent, as ``_Call`` sees it."""
        tensors, first, count = {}, self.agents[0], len(self)
        for network in self.networks:
            named = list(getattr(first, network).named_parameters())
            matrix = self.get_parameter(network)
            pieces = (matrix if network == trained else matrix.detach()).split([p.numel() for _, p in named], 1)
            for (name, parameter), piece in zip(named, pieces):
                tensors[f"agent.{network}.{name}"] = piece.view(count, *parameter.shape)
        for name, _ in first.named_buffers():
            tensors[f"agent.{name}"] = self.get_buffer(_key(name))
        return tensors

    @staticmethod
    def _flattened(agent: SobolevActorCritic, network: str) -> Tensor:
        module = getattr(agent, network)
        parameters = [] if module is None else [p.detach().flatten() for p in module.parameters()]
        return torch.cat(parameters) if parameters else torch.empty(0)


class _Call(nn.Module):
    """Lends an agent's tensors to a function: ``torch.func.functional_call`` replaces those of a module's call."""

    def __init__(self, agent: SobolevActorCritic) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.agent, *arguments)


def _key(name: str) -> str:
    """A buffer's name without dots, which a module's own buffers cannot have."""
    return "buffer_" + name.replace(".", "-")
