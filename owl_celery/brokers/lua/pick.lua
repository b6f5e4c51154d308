-- Move some waiting messages, each to a queue of its own; none is lost or doubled.
-- KEYS: list to take from, lease, fence, then for each task the list to put it to. ARGV: how many of
-- the oldest messages to look through, bytes after which no more are read, token of the lease (empty:
-- none is needed), fencing number, then for each task its id and the name of its new queue.
-- Returns how many were moved: a task that is gone meanwhile is passed over; -1 when the lease is
-- another's.
if ARGV[3] ~= '' and not is_permitted(KEYS[2], ARGV[3], KEYS[3], ARGV[4]) then
  return -1
end
local budget, wanted, left = tonumber(ARGV[2]), {}, 0
for i = 4, #KEYS do
  local id = ARGV[2 * i - 3]
  left = wanted[id] and left or left + 1
  wanted[id] = i
end
-- From where they were seen: what has left since was older, and those passed over need no look.
local found = {}
for index = -tonumber(ARGV[1]), -1 do
  if left == 0 or budget <= 0 then
    break
  end
  local message = redis.call('LINDEX', KEYS[1], index) or ''
  budget = budget - #message
  local is_sound, decoded = pcall(cjson.decode, message)
  local headers = is_sound and type(decoded) == 'table' and decoded.headers
  local id = type(headers) == 'table' and headers.id
  local i = id and wanted[id]
  if i then
    wanted[id], left = nil, left - 1
    found[#found + 1] = {message, i}
  end
end
-- The oldest first.
for at = #found, 1, -1 do
  local message, i = found[at][1], found[at][2]
  redis.call('LPUSH', KEYS[i], redirected(message, ARGV[2 * i - 2]))
  redis.call('LREM', KEYS[1], -1, message)
end
return #found
