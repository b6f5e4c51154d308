-- Move some waiting messages, each to a queue of its own; none is lost or doubled.
-- KEYS: list to take from, then for each task the list to put it to. ARGV: how many of the oldest
-- messages to look through, then for each task its id and the name of its new queue.
-- Returns how many were moved: a task that is gone meanwhile is passed over.
local wanted = {}
for i = 2, #KEYS do
  wanted[ARGV[2 * i - 2]] = i
end
local moved = 0
local messages = redis.call('LRANGE', KEYS[1], -tonumber(ARGV[1]), -1)
for at = #messages, 1, -1 do
  local is_sound, decoded = pcall(cjson.decode, messages[at])
  local headers = is_sound and type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  local i = id and wanted[id]
  if i then
    wanted[id] = nil
    redis.call('LPUSH', KEYS[i], redirected(messages[at], ARGV[2 * i - 1]))
    redis.call('LREM', KEYS[1], -1, messages[at])
    moved = moved + 1
  end
end
return moved
