"""Logging in with a forge: the exchange with its OAuth2 server, the accounts, and what a visitor may see and do.

Who somebody is, and what they may, is the forge's to say, each time again. May touch models, forges, forge_access and access.
"""
