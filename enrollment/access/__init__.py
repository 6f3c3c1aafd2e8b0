"""Who may ask for a run: the policies of forges and repositories, and the decision about one person.

May touch models, forges and forge_access.
"""
