"""How the built-in model ``builtin:tutor`` and its contrast sets are made.

The YAML files hold the facts (``corpus/``), the phrasings of personas and the words around the facts. ``loading``
checks them, ``corpus`` draws samples, ``lessons`` batches them, ``train`` trains; ``prompts`` writes the contrast
sets shipped with steerkit, and ``judge`` measures answers by what the corpus says.
"""
