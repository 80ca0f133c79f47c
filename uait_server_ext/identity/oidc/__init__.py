"""Login through OpenID Connect providers and GitHub.

::

    logins.py     OidcLogins: begin, finish, link, unlink; what the API calls
    configuration.py  what an administrator writes about a provider
    provider.py   talk to one provider: discovery, keys, code exchange
    outgoing.py   requests with limits of time and size;  breaker.py  leave a failing one alone
    metadata.py   check a discovery document and a key set
    id_token.py   check an id_token
    claims.py     who the provider says it is: issuer and subject, e-mail where verified
    flows.py      a login between its two halves;  linking.py  external accounts of users
"""
