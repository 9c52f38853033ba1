"""The Lua scripts of the Redis broker for nodes, sessions and presence, one for each operation.

All their keys share one hash tag, so that ``KEYS[1]``, the set of nodes, leads to all the others. Times are passed
in, in milliseconds.
"""

from __future__ import annotations

from anycable_tx.redis.api import Script

__all__ = [
    "BEAT",
    "CLAIM",
    "FORGET",
    "FORGET_ALL",
    "JOIN",
    "LEAVE",
    "MOVE",
    "QUIT",
    "RELEASE",
    "RELEASE_PRESENCE",
    "SAVE",
    "SWEEP_PRESENCE",
    "SWEEP_SESSIONS",
]

_SHARED = """
local P = string.sub(KEYS[1], 1, -6)
local function key(kind, name) return P .. kind .. ':' .. name end
-- Of others' times something is known only if of one's own is: ARGV 1 now, 2 node. These data may be older ones.
local function judges(before)
  return before ~= '' and tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 0) > tonumber(ARGV[1])
end
"""

# KEYS nodes. ARGV 1 node, 2 until when it is known to live.
BEAT = Script("redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])")

# KEYS nodes. ARGV 1 node. It stops; where something is still its own, that waits for its time to be over.
QUIT = Script(
    _SHARED
    + """
if redis.call('EXISTS', key('sat', ARGV[1]), key('pat', ARGV[1])) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
end
"""
)

# A session is a hash: r record, i identifiers' token, n node, d deadline ('' while connected), h heir, x it goes on
# in its heir, w who tells its end. sends: sid -> deadline; sof: sids by identifiers; sat: connected ones by node.
_SESSIONS = (
    _SHARED
    + """
local function forget(sid, s)
  redis.call('DEL', key('s', sid))
  redis.call('ZREM', P .. 'sends', sid)
  if s[1] then redis.call('SREM', key('sof', s[1]), sid) end
  if s[2] then redis.call('SREM', key('sat', s[2]), sid) end
end
local function session(sid)
  return redis.call('HMGET', key('s', sid), 'i', 'n', 'd', 'x', 'w')
end
-- The end of a session: nothing more of it can be had, and ARGV[2] tells, or whoever comes by after ARGV[3].
local function tell(sid, s, ended)
  redis.call('HSET', key('s', sid), 'w', ARGV[2])
  redis.call('ZADD', P .. 'sends', ARGV[3], sid)
  redis.call('SREM', key('sof', s[1]), sid)
  redis.call('SREM', key('sat', s[2]), sid)
  ended[#ended + 1] = sid
  ended[#ended + 1] = redis.call('HGET', key('s', sid), 'r')
end
"""
)

# KEYS nodes. ARGV 1 node, 2 until when it is known to live, 3 sid, 4 identifiers' token, 5 record, 6 previous or ''.
SAVE = Script(
    _SESSIONS
    + """
redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1])
if ARGV[6] ~= '' and redis.call('EXISTS', key('s', ARGV[6])) == 1 then
  redis.call('HSET', key('s', ARGV[6]), 'x', '1')
end
local s = session(ARGV[3])
if s[1] and (s[1] ~= ARGV[4] or s[5]) then
  forget(ARGV[3], s)
elseif s[2] and s[2] ~= ARGV[1] then
  redis.call('SREM', key('sat', s[2]), ARGV[3])
end
redis.call('HSET', key('s', ARGV[3]), 'r', ARGV[5], 'i', ARGV[4], 'n', ARGV[1], 'd', '')
redis.call('ZREM', P .. 'sends', ARGV[3])
redis.call('SADD', key('sof', ARGV[4]), ARGV[3])
redis.call('SADD', key('sat', ARGV[1]), ARGV[3])
"""
)

# KEYS nodes. ARGV 1 sid, 2 record, 3 deadline. Returns 1 if it is kept.
RELEASE = Script(
    _SESSIONS
    + """
local s = session(ARGV[1])
if not s[1] or s[5] then
  return 0
end
redis.call('HSET', key('s', ARGV[1]), 'r', ARGV[2], 'd', ARGV[3])
redis.call('ZADD', P .. 'sends', ARGV[3], ARGV[1])
redis.call('SREM', key('sat', s[2]), ARGV[1])
return 1
"""
)

# KEYS nodes. ARGV 1 now, 2 sid, 3 heir. Returns record and rival, or nothing.
CLAIM = Script(
    _SESSIONS
    + """
local s = session(ARGV[2])
if not s[1] or s[5] or (s[3] ~= '' and tonumber(s[3]) <= tonumber(ARGV[1])) then
  return {}
end
local c = redis.call('HMGET', key('s', ARGV[2]), 'r', 'h')
redis.call('HSET', key('s', ARGV[2]), 'h', ARGV[3])
return {c[1], c[2] or ''}
"""
)

# KEYS nodes. ARGV 1 sid. One whose end is being told stays until that is done.
FORGET = Script(
    _SESSIONS
    + """
local s = session(ARGV[1])
if s[1] and not s[5] then
  forget(ARGV[1], s)
end
"""
)

# KEYS nodes. ARGV 1 now, 2 node, 3 when somebody else may tell, 4 identifiers' token, 5 nodes known to live until
# then are gone ('' when that cannot be judged).
# Returns how many could be claimed; then sid and record of each whose end the node is to tell.
FORGET_ALL = Script(
    _SESSIONS
    + """
local ended = {0}
for _, sid in ipairs(redis.call('SMEMBERS', key('sof', ARGV[4]))) do
  local s = session(sid)
  if s[1] and not s[5] then
    if s[3] == '' or tonumber(s[3]) > tonumber(ARGV[1]) then
      ended[1] = ended[1] + 1
    end
    local lives = s[3] == ''
    if lives and judges(ARGV[5]) then
      lives = tonumber(redis.call('ZSCORE', KEYS[1], s[2]) or 0) > tonumber(ARGV[5])
    end
    if lives or s[4] then
      forget(sid, s)
    else
      tell(sid, s, ended)
    end
  end
end
redis.call('DEL', key('sof', ARGV[4]))
return ended
"""
)

# KEYS nodes. ARGV 1 now, 2 node, 3 when somebody else may tell, 4 nodes known to live until then have lived too long
# ago ('' when that cannot be judged), 5... sids whose end was told. Returns sid and record of each whose end the node
# is to tell; at most 100.
SWEEP_SESSIONS = Script(
    _SESSIONS
    + """
local ended = {}
for n = 5, #ARGV do
  local s = session(ARGV[n])
  if s[5] == ARGV[2] then
    forget(ARGV[n], s)
  end
end
local function finish(sid, s)
  if not s[1] or s[4] then
    forget(sid, s)
  else
    tell(sid, s, ended)
  end
end
for _, sid in ipairs(redis.call('ZRANGEBYSCORE', P .. 'sends', '-inf', ARGV[1], 'LIMIT', 0, 100)) do
  finish(sid, session(sid))
end
if #ended == 0 and judges(ARGV[4]) then
  for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[4])) do
    for _, sid in ipairs(redis.call('SRANDMEMBER', key('sat', node), 100)) do
      local s = session(sid)
      if s[2] == node and s[3] == '' and not s[5] then
        finish(sid, s)
      else
        redis.call('SREM', key('sat', node), sid)
      end
    end
    if redis.call('EXISTS', key('sat', node), key('pat', node)) == 0 then
      redis.call('ZREM', KEYS[1], node)
    end
    if #ended > 0 then break end
  end
end
return ended
"""
)

# Presence. p: a stream's members, id -> '<number of sessions> <info>'; q: a session, s:<stream> -> id, n node,
# d deadline ('' while connected); pends: sid -> deadline; pat: connected sids by node; ptold: members whose leaving
# is being told, '<length of the stream's name>:<stream><id>' -> when somebody else may tell it.
_PRESENCE = (
    _SHARED
    + """
local function gone(stream, id)
  local members = key('p', stream)
  local count, info = string.match(redis.call('HGET', members, id) or '1 null', '^(%d+) (.*)$')
  if tonumber(count) > 1 then
    redis.call('HSET', members, id, string.format('%d %s', tonumber(count) - 1, info))
    return false
  end
  redis.call('HDEL', members, id)
  return true
end
local function pair(stream, id) return string.len(stream) .. ':' .. stream .. id end
local function streams(sid)
  local found, all = {}, redis.call('HGETALL', key('q', sid))
  for n = 1, #all, 2 do
    if string.sub(all[n], 1, 2) == 's:' then
      found[#found + 1] = {string.sub(all[n], 3), all[n + 1]}
    end
  end
  return found
end
local function connect(sid, node)
  local old = redis.call('HGET', key('q', sid), 'n')
  if old and old ~= node then redis.call('SREM', key('pat', old), sid) end
  redis.call('HSET', key('q', sid), 'n', node, 'd', '')
  redis.call('ZREM', P .. 'pends', sid)
  redis.call('SADD', key('pat', node), sid)
end
local function drop(sid)
  local node = redis.call('HGET', key('q', sid), 'n')
  redis.call('DEL', key('q', sid))
  redis.call('ZREM', P .. 'pends', sid)
  if node then redis.call('SREM', key('pat', node), sid) end
end
"""
)

# KEYS nodes. ARGV 1 node, 2 until when it is known to live, 3 sid, 4 stream, 5 id, 6 info.
# Returns 1 if the list changed, 0 if not, the other id if the session is there under another.
JOIN = Script(
    _PRESENCE
    + """
local stream, id, info = ARGV[4], ARGV[5], ARGV[6]
local there = redis.call('HGET', key('q', ARGV[3]), 's:' .. stream)
if there and there ~= id then
  return {there}
end
redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1])
connect(ARGV[3], ARGV[1])
local present = redis.call('HGET', key('p', stream), id)
local count, old = 0, nil
if present then
  count, old = string.match(present, '^(%d+) (.*)$')
end
if not there or not present then
  redis.call('HSET', key('q', ARGV[3]), 's:' .. stream, id)
  count = tonumber(count) + 1
end
redis.call('HSET', key('p', stream), id, string.format('%d %s', tonumber(count), info))
redis.call('ZREM', P .. 'ptold', pair(stream, id))
return old == info and 0 or 1
"""
)

# KEYS nodes. ARGV 1 sid, 2 stream, 3 when somebody else may tell. Returns the id if it is gone.
LEAVE = Script(
    _PRESENCE
    + """
local id = redis.call('HGET', key('q', ARGV[1]), 's:' .. ARGV[2])
if not id then
  return false
end
redis.call('HDEL', key('q', ARGV[1]), 's:' .. ARGV[2])
if #streams(ARGV[1]) == 0 then
  drop(ARGV[1])
end
if not gone(ARGV[2], id) then
  return false
end
redis.call('ZADD', P .. 'ptold', ARGV[3], pair(ARGV[2], id))
return id
"""
)

# KEYS nodes. ARGV 1 sid, 2 deadline.
RELEASE_PRESENCE = Script(
    _PRESENCE
    + """
local node = redis.call('HGET', key('q', ARGV[1]), 'n')
if node then
  redis.call('HSET', key('q', ARGV[1]), 'd', ARGV[2])
  redis.call('ZADD', P .. 'pends', ARGV[2], ARGV[1])
  redis.call('SREM', key('pat', node), ARGV[1])
end
"""
)

# KEYS nodes. ARGV 1 node, 2 until when it is known to live, 3 sid, 4 heir. Returns stream, id and info of what moved.
MOVE = Script(
    _PRESENCE
    + """
local sid, heir, moved, left = ARGV[3], ARGV[4], {}, false
for _, each in ipairs(streams(sid)) do
  local stream, id = each[1], each[2]
  local there = redis.call('HGET', key('q', heir), 's:' .. stream)
  if sid ~= heir and there and there ~= id then
    left = true
  else
    if sid ~= heir then
      redis.call('HDEL', key('q', sid), 's:' .. stream)
      redis.call('HSET', key('q', heir), 's:' .. stream, id)
      if there then gone(stream, id) end
    end
    moved[#moved + 1] = stream
    moved[#moved + 1] = id
    moved[#moved + 1] = string.match(redis.call('HGET', key('p', stream), id) or '1 null', '^%d+ (.*)$')
  end
end
if #moved > 0 then
  if sid ~= heir and not left then drop(sid) end
  redis.call('ZADD', KEYS[1], 'NX', ARGV[2], ARGV[1])
  connect(heir, ARGV[1])
end
return moved
"""
)

# KEYS nodes. ARGV as those of SWEEP_SESSIONS, but from 5 on: stream and id of each whose leaving was told.
# Returns stream and id of each whose leaving the node is to tell.
SWEEP_PRESENCE = Script(
    _PRESENCE
    + """
local told = {}
for n = 5, #ARGV, 2 do
  redis.call('ZREM', P .. 'ptold', pair(ARGV[n], ARGV[n + 1]))
end
local function tell(stream, id)
  redis.call('ZADD', P .. 'ptold', ARGV[3], pair(stream, id))
  told[#told + 1] = stream
  told[#told + 1] = id
end
local function finish(sid)
  for _, each in ipairs(streams(sid)) do
    if gone(each[1], each[2]) then tell(each[1], each[2]) end
  end
  drop(sid)
end
for _, both in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ptold', '-inf', ARGV[1], 'LIMIT', 0, 100)) do
  local length, rest = string.match(both, '^(%d+):(.*)$')
  tell(string.sub(rest, 1, tonumber(length)), string.sub(rest, tonumber(length) + 1))
end
for _, sid in ipairs(redis.call('ZRANGEBYSCORE', P .. 'pends', '-inf', ARGV[1], 'LIMIT', 0, 100)) do
  finish(sid)
end
if #told == 0 and judges(ARGV[4]) then
  for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[4])) do
    for _, sid in ipairs(redis.call('SRANDMEMBER', key('pat', node), 100)) do
      local there = redis.call('HMGET', key('q', sid), 'n', 'd')
      if there[1] == node and there[2] == '' then
        finish(sid)
      else
        redis.call('SREM', key('pat', node), sid)
      end
    end
    if redis.call('EXISTS', key('sat', node), key('pat', node)) == 0 then
      redis.call('ZREM', KEYS[1], node)
    end
    if #told > 0 then break end
  end
end
return told
"""
)
