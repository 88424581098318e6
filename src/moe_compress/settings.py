"""Kedro's project settings: which hooks run, and which resolvers configuration files may use."""

import os
import warnings

from omegaconf.resolvers import oc

from moe_compress.hooks import MlflowHooks, RunKeyHooks, TrackingHooks

# The last is called first: what others log needs a run.
HOOKS = (RunKeyHooks(), TrackingHooks(), MlflowHooks())
# MlflowHooks calls this plugin's hooks itself; a wheel's name may be spelt either way.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-mlflow")
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment says only what it changes: conf/local may set one gate's limit and keep the rest.
    "merge_strategy": {"parameters": "soft", "globals": "soft"},
    # Kedro offers environment variables to credentials only; the tracking server's address needs them too.
    "custom_resolvers": {"oc.env": oc.env},
}

# Kedro's and MLflow's usage reports are off unless someone asks for them.
os.environ.setdefault("DO_NOT_TRACK", "true")
# kedro-mlflow defines a model without type hints at every start.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")
