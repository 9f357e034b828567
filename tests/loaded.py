"""What a run loads sooner or later: imported by the server of ``processes`` for all that it forks."""

import alembic.command  # noqa: F401
import gymnasium.envs.mujoco  # noqa: F401
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
from databases import copy_new_databases

import dsob_pl.agents
import dsob_pl.cli.run
import dsob_pl.critics
import dsob_pl.data
import dsob_pl.tracking  # noqa: F401

copy_new_databases()
