"""The factor cache: what was computed from base weights once is not computed again. See
`workers.cache.factors`.
"""
