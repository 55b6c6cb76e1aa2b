"""As ``tensorrt_llm/mapping.py`` @b35ac1b6: who a rank is, from its number alone."""

from __future__ import annotations


class Mapping:
    def __init__(
        self,
        world_size: int = 1,
        rank: int = 0,
        gpus_per_node: int = 8,
        *,
        cp_size: int = 1,
        tp_size: int = 1,
        pp_size: int = 1,
        moe_tp_size: int = -1,
        moe_ep_size: int = -1,
        enable_attention_dp: bool = False,
    ) -> None:
        if world_size != tp_size * pp_size * cp_size:
            raise ValueError(
                "world_size must equal to tp_size * pp_size * cp_size, but got "
                f"{world_size} != {tp_size} * {pp_size} * {cp_size}."
            )
        if moe_tp_size == -1 and moe_ep_size == -1:
            moe_tp_size, moe_ep_size = tp_size, 1
        elif moe_tp_size == -1:
            moe_tp_size = tp_size // moe_ep_size
        elif moe_ep_size == -1:
            moe_ep_size = tp_size // moe_tp_size
        if moe_tp_size * moe_ep_size != tp_size:
            raise ValueError(
                "moe_tp_size * moe_ep_size * moe_cluster_size must equal to moe_world_size, but "
                f"got {moe_tp_size * moe_ep_size} != {tp_size}"
            )
        if not 0 <= rank < world_size and not enable_attention_dp:
            raise ValueError(
                f"Rank should be an integer between 0 and {world_size - 1}, but got {rank}."
            )
        self.world_size, self.rank, self.gpus_per_node = world_size, rank, gpus_per_node
        self.tp_size, self.pp_size, self.cp_size = tp_size, pp_size, cp_size
        self.moe_tp_size, self.moe_ep_size = moe_tp_size, moe_ep_size

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def pp_rank(self) -> int:
        return self.rank // (self.tp_size * self.cp_size)

    @property
    def moe_ep_rank(self) -> int:
        return self.tp_rank % self.moe_ep_size

    @property
    def node_rank(self) -> int:
        return self.rank // self.gpus_per_node

    @property
    def local_rank(self) -> int:
        return self.rank % self.gpus_per_node
