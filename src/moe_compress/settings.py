"""Kedro's project settings: which hooks run, and which resolvers configuration files may use."""

from omegaconf.resolvers import oc

from moe_compress.hooks import RunKeyHooks, TrackingHooks

HOOKS = (RunKeyHooks(), TrackingHooks())
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # Kedro offers environment variables to credentials only; the tracking server's address needs them too.
    "custom_resolvers": {"oc.env": oc.env},
}
