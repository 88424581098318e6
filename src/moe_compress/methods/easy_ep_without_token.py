"""`easy_ep_without_token`: EASY-EP's ablation that leaves out the token contribution ("w/o token")."""

from moe_compress.methods.reap_sum import STATISTICS, score

__all__ = ["STATISTICS", "score"]
