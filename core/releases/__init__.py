"""Releases of base models: what is subscribed to, what guards a campaign, and what a campaign's jobs are.

names       does a repo match a subscription: a pattern, or the rule for successors
template    where a moved adapter goes
spec        a subscription as it is sent
guards      facts about a release, and what speaks against it
plan        from a subscription and a release to conversion requests
tasks       what the jobs of kind `release` and `reconcile` hold
states      where a campaign is
"""
