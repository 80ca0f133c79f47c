"""Which model answers: tiers, policy, verification, failover, budgets, the cache of answers.

``service.Router`` is the way in; it stands where ``inference.service.Inference`` would, for callers
that want an answer and not a certain model. Nothing is imported here.
"""
