"""The parts by hand: each is one call on arrays, files or folders (``wsss_jax`` lists them).

Arguments are looked at before anything is computed; a mistake that people make often is answered
with what to write instead. The machinery is below: ``ops`` for arrays, ``stages`` for stores.
"""
