"""Operations on people, roles and groups, for those who administer them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from uait_server_ext.api.operation import Call, operation
from uait_server_ext.identity.models import (
    GroupChange,
    GroupInfo,
    GroupList,
    Invite,
    OneTimeLink,
    RoleInfo,
    RoleList,
    UserChange,
    UserInfo,
    UserList,
)
from uait_server_ext.identity.principal import ROLES

UserId = Annotated[str, Field(max_length=40)]
GroupName = Annotated[str, Field(max_length=64)]


@operation("GET", "/users", permission="users:read", rate="read")
async def list_users(
    call: Call,
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Field(ge=1, le=1000)] = 100,
) -> UserList:
    """List people by name."""
    users, total = await call.services.identity.directory.users(offset, limit)
    return UserList(users=users, total=total)


@operation("POST", "/users", permission="users:write", rate="write", sensitive=True, secret=True)
async def invite_user(call: Call, body: Invite) -> OneTimeLink:
    """Invite a person: the link, good once and for a week, makes an account with the role."""
    from uait_server_ext.identity.enrolment import invite

    identity = call.services.identity
    link = await invite(identity, call.principal, body.role, call.request.address)
    return OneTimeLink(url=link.url(here(call)), expires_at=link.expires_at)


@operation("GET", "/users/{user}", permission="users:read", rate="read")
async def get_user(call: Call, user: UserId) -> UserInfo:
    """Describe a person."""
    return await call.services.identity.directory.user(user)


@operation("PATCH", "/users/{user}", permission="users:write", rate="write", sensitive=True)
async def change_user(call: Call, user: UserId, body: UserChange) -> UserInfo:
    """Change a person's displayed name or roles, disable or enable them.

    New roles and disabling end the person's sessions and tokens at once. Nobody gives a role that
    allows more than they may do, and the last administrator stays (409).
    """
    return await call.services.identity.directory.change(
        call.principal,
        user,
        display_name=body.display_name,
        roles=body.roles,
        disabled=body.disabled,
        address=call.request.address,
    )


@operation("DELETE", "/users/{user}", permission="users:write", rate="write", sensitive=True)
async def delete_user(call: Call, user: UserId) -> None:
    """Delete a person with their sessions, keys and factors."""
    await call.services.identity.directory.delete(
        call.principal, user, address=call.request.address
    )


@operation(
    "POST",
    "/users/{user}/reset",
    permission="users:write",
    rate="write",
    sensitive=True,
    secret=True,
)
async def reset_user(call: Call, user: UserId) -> OneTimeLink:
    """Make a link, good once and for a day, with which a person sets a new password."""
    from uait_server_ext.identity.enrolment import reset_link

    identity = call.services.identity
    link = await reset_link(identity, call.principal, user, call.request.address)
    return OneTimeLink(url=link.url(here(call)), expires_at=link.expires_at)


@operation(
    "DELETE", "/users/{user}/factors", permission="users:write", rate="write", sensitive=True
)
async def remove_user_factors(call: Call, user: UserId) -> None:
    """Remove every second factor of a person who lost them; everything they hold ends."""
    identity = call.services.identity
    await identity.database.read(
        lambda connection: identity.directory.may_govern(connection, call.principal, user)
    )
    await identity.factors.remove_all(user, call.principal.id, call.request.address)


@operation("GET", "/roles", permission="users:read", rate="read")
async def list_roles(call: Call) -> RoleList:
    """List the roles and what each may do."""
    return RoleList(
        roles=[RoleInfo(name=name, permissions=sorted(held)) for name, held in ROLES.items()]
    )


@operation("GET", "/groups", permission="users:read", rate="read")
async def list_groups(call: Call) -> GroupList:
    """List the groups by name."""
    return GroupList(groups=await call.services.identity.groups.all())


@operation("GET", "/groups/{group}", permission="users:read", rate="read")
async def get_group(call: Call, group: GroupName) -> GroupInfo:
    """Describe a group."""
    return await call.services.identity.groups.get(group)


@operation("PUT", "/groups/{group}", permission="users:write", rate="write", sensitive=True)
async def put_group(call: Call, group: GroupName, body: GroupChange) -> GroupInfo:
    """Make a group or change its roles and members; their sessions end where they are affected."""
    return await call.services.identity.groups.put(
        call.principal, group, body.roles, body.members, address=call.request.address
    )


@operation("DELETE", "/groups/{group}", permission="users:write", rate="write", sensitive=True)
async def delete_group(call: Call, group: GroupName) -> None:
    """Delete a group; its members lose its roles."""
    await call.services.identity.groups.delete(call.principal, group, address=call.request.address)


def here(call: Call) -> str:
    """Return the server's address as the browser sees it, with the base path."""
    return call.request.origin + call.request.base_url
